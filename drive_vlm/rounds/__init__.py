"""rounds.json: the state of a chain of self-play rounds, for people and for the recipes that run it.

    OUT/rounds.json
    OUT/data/train.jsonl eval.jsonl        the rows, where some of them were held out
    OUT/direct/, OUT/round-0/              answers.jsonl and scores.json of the models that the chain starts from
    OUT/round-T/generated.jsonl            answers of round T-1's model to the training rows
    OUT/round-T/pairs.jsonl                those answers, rejected, and the rows' own, chosen
    OUT/round-T/model/                     trained on the pairs of rounds T and T-1, from round T-1's model and against it
    OUT/round-T/answers.jsonl scores.json  its answers to the held-out rows, and what they are worth

Every step that is recorded carries hashes of what it made: a state that does not fit its files is refused.
"""
