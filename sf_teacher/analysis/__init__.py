"""What a user reads before training (inspection) and after it (report, which trains pilot students)."""
