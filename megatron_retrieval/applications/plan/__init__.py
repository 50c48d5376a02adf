"""What a run takes in disk, memory and time, estimated before it starts."""
