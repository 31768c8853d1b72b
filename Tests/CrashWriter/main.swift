// Saves in a loop until it is killed.
