"""The endpoints: each takes a body apart, lets a Job run, and puts the answer together."""
