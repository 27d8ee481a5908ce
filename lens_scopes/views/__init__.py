"""What results show: static HTML, circuitsvis, pages. A result is drawn here and nowhere else."""
