from dataclasses import replace

import torch

import thinkers

config = thinkers.RECIPES["add/thoughtsformer"]()
config = replace(  # sums of up to 2 digits instead of 3: a quarter of a minute of one CPU core
    config,
    task=replace(config.task, max_digits=2),
    training=replace(config.training, num_updates=300, batch_size=64, optimizer="muon", lr=0.02),
)
run = thinkers.train(config, out="runs/first")
print(thinkers.answer(run, "48+69="))  # 48+69=117
for row in thinkers.evaluate(run, num_steps=[1, 2]):  # on 2,000 held-out sums
    print(row["num_steps"], "steps:", row["exact"])

model, task = thinkers.open_run(run)  # or its folder
prompt = torch.tensor([task.encode("48+69=")])
thought = model(prompt, num_steps=2, keep_states=True)
logits = model.read_out(thought.states)  # (1, 2, 7, vocab_size): after each thinking step
for step in logits[0, :, -1].argmax(-1):
    print(task.decode([step]))  # the last digit, written first, after one step and after two: 7
