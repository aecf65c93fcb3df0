"""Lightning callbacks: what is watched and kept while training."""
