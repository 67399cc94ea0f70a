"""What every other room stands on: errors, atomic files, random numbers, progress, what this machine can do."""
