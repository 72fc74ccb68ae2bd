"""What watches over the models while they learn: it scores them on the past, and says when something goes wrong."""
