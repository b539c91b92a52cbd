"""The kind `win_score`.

config              the evaluation: its fields, its stages in order, its table
sections            baselines and judges in the configuration
judge               what a judge is; chat and stand_in are the two, opening makes one ready
rating              the paper's prompt for a judge, and the scores in its reply
given_responses     stage: a baseline's responses from a file
templated_prompts   stage: the prompts in another model's template
comparisons         stage: pairs judged in both orders
win_score           stage: the numbers of the comparisons
judgements          from judgements to the win score (Eq. 7); summary counts them
report              judged pairs for people
"""
