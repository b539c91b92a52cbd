"""The stages of a run, each a pure function from a spec and artifacts to artifacts.

stage          what a stage is
registry       stages by their name
launch         the parent's side: find what is committed, and have children make what is not
worker         the child's side: the process in which a stage runs

In the order of a run: model, prompts, fixed_pairs, selection, responses, scores, replay, policy; and preferences,
reward_model for a reward model that is trained. Those of an evaluation are in `optune_core.evaluation`.
"""
