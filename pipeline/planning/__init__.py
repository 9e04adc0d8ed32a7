"""What a run costs and how it fits a budget, before it starts."""
