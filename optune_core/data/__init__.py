"""Tables and model folders: everything that stages read and write as files.

schemas       columns of the Parquet tables that stages pass to each other
row_groups    Parquet files as streams of row groups
id_hash       a 64-bit hash of every prompt id of a column
sources       rows of a user's data set: a file or a data set of the hub
prompts       the run's fixed prompt set, made from such rows
preferences   preference pairs to train a reward model on
model_folder  layout of model folders, their identity, and their tokenizer
"""
