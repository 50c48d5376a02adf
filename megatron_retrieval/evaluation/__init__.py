"""How good is what was retrieved: answer matching, recall, intervals, result files, and the task that makes them."""
