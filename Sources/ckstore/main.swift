print("ckstore")
