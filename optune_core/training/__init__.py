"""Training of the policy on stored token ids and stored reference log-probabilities.

policy       trains a policy: the complete run of one training stage
trainer      transformers' trainer with packed batches, on one or several processes
objectives   the loss of a batch and its metrics, for each loss of the configuration
online       online samples that HyPO needs
reference    reference log-probabilities, computed once and stored
logps        log π(y|x) of pairs, by one function for policy and reference
attention    attention kernels for packed pairs
head         log-probabilities from hidden states without the complete logits
layout       pairs as token ids, packed into rows without padding
batches      plan of optimizer steps and forward passes
callbacks    progress and the times of checkpoints
checkpoints  the trainer's state as safetensors and JSON
recovery     commits checkpoints and finds the newest usable one
weights      loading and saving of master and published weights
"""
