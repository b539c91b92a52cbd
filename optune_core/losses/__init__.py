"""Losses that training minimises.

equations   Eq. 5 and 6 of the paper, and losses beyond it, as pure functions of tensors
loss        base of all losses: a section of the configuration with a function from a batch to a loss a row
registry    losses by the `type` that a configuration gives them
wdpo        weighted DPO (Eq. 6), the paper's loss
best_of_n   supervised fine-tuning on the chosen responses
hypo        DPO on fixed pairs, and the divergence from the reference on fresh samples (Song et al. 2024)

To add one, write a class in a file here that derives from `Loss`, and its line in `registry`. Packing, the reference
pass, distribution, checkpoints, the log and the report ask the class for what they need; nothing else has to change.
"""
