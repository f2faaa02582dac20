"""What a user reads before training (inspection) and after it (report). It trains nothing by itself."""
