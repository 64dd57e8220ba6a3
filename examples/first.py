from dataclasses import replace

import torch

import thinkers

config = thinkers.RECIPES["add/thinker"]()
config = replace(config, training=replace(config.training, num_updates=30))  # just a taste
run = thinkers.train(config, out="runs/first")
for row in thinkers.evaluate(run, num_steps=[1, 4, 16], num_examples=200):
    print(row["num_steps"], "steps:", row["exact"])
print(thinkers.answer(run.folder, "12+34=", num_steps=8))

model = thinkers.build_model("thinker", vocab_size=65, num_steps=4)
thought = model(torch.randint(65, (2, 48)), num_steps=8, keep_states=True)
print(thought.logits.shape, thought.states.shape)  # (2, 48, 65) and (2, 8, 48, 128)
