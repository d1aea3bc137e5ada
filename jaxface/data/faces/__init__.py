"""A parametric face renderer: people, the stage they stand on, their portraits."""
