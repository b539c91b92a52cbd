"""The stages of a run, each a pure function from a spec and artifacts to artifacts.

stage          the class `Stage`
registry       stages by their name
launch         the parent's side: find committed artifacts, and start child processes that make the missing ones
worker         the child's side: the process in which a stage runs

The stages in the order of a run are model, prompts, fixed_pairs, selection, responses, scores, replay and policy; a
reward model that is trained adds preferences and reward_model. The stages of evaluations are in
`optune_core.evaluation`. To add a stage, write its module, which ends with `STAGE`, and its line in `registry`.
"""
