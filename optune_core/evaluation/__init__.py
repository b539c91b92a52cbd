"""Evaluations of a run's policies: win scores, AlpacaEval 2, lm-evaluation-harness.

evaluation    base of all kinds: a section of the configuration that judges policies and shows its findings
registry      kinds of evaluation by the `kind` that a configuration gives them
loading       loading of the YAML file of an evaluation
subject       the run, and the policies of it that are evaluated
prompts       prompts and responses to them, for kinds that need any
endpoint      an OpenAI-compatible endpoint whose model judges, for kinds that need one
records       the records in the run's ledger: refused under another configuration, written, shown
win_score     a judge compares each answer with a baseline's, in both orders (Eq. 7)
alpaca_eval   AlpacaEval 2's length-controlled win rate
harness       tasks of lm-evaluation-harness

To add a kind, write a class in a folder here that derives from `Evaluation`, and its line in `registry`. The flow, the
command, the ledger and the pages know nothing of it but what the class says of itself.
"""
