"""The mini encyclopedia: generated articles and questions that a small model can learn within a minute."""
