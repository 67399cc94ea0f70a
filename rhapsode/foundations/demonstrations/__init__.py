"""What `rhapsode foundations NAME` computes and shows: one module for each name, each with one `demonstrate`."""
