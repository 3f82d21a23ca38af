"""What people read of a run: the page, its charts, the leaderboard, the model card, files for CI."""
