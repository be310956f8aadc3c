"""How well NextMove and its peers predict, on public logs under published protocols."""
