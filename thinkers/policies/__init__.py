"""Policies: roll-outs of a model that chooses its next block, and the loss that trains it."""
