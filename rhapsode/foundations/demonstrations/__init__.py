"""What `rhapsode foundations NAME` computes and explains, one module for each name."""
