// Restores a machine in a process of its own, lets it run to its end, and prints what its guest prints.
//
// Usage: ReferenceMachineRunner STATE MEMORY [DISK]: files. What the guest leaves in memory is put back into MEMORY.

import ReferenceMachine
