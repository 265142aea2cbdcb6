"""What is kept between runs: who the user is, facts, and what was done before; each with where it came from."""
