"""What is seen from outside: how long stages took, what they cost, what became of each video."""
