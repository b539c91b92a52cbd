"""The human study (appendix D): people compare responses of two policies without knowing which policy wrote which.

sources     the sides that are compared: a run's policy, or a file of responses
pairing     the pairs of a study, and the outcome of every prompt
create      creates a study, and opens one
assignment  the pairs that a participant is shown, and their order
sessions    participants and their choices
web         the pages, in pages/ and static/
serve       the web server
results     ratings, percentages and intervals (Table 4)
agreement   agreement of the participants
"""
