"""What annotators say about answers: simulated ones here, people later; never imports torch."""
