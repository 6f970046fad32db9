# %% [markdown]
# # Use what a run has learned
#
# In a plain loop of Gymnasium, without Ray or a server. As a script: `RUN=runs/NAME python examples/use_policy.py`

# %%
import os

import gymnasium as gym

import learner

RUN = os.environ.get("RUN", "runs/NAME")

# %% [markdown]
# The policy that the run's own evaluations chose; `"final"` is the newest one. `about` has the environment that it was
# trained in.

# %%
policy = learner.load_policy(RUN, "best")
env = gym.make(policy.about["env"]["id"], **policy.about["env"]["kwargs"])

# %%
for seed in range(3):
    obs, info = env.reset(seed=seed)
    policy.reset()  # where an episode begins, for policies that stack frames
    total, over = 0.0, False
    while not over:
        action, q = policy.act(obs, info["action_mask"] if policy.masked else None)
        obs, reward, terminated, truncated, info = env.step(action)
        total, over = total + float(reward), terminated or truncated
    print(f"seed {seed}: return {total:g}")
env.close()
