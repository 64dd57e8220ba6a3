"""Research: experiments of a fixed time, one change each, against the best so far."""
