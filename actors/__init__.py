"""The herd: vector environments, policies, rollouts, their Ray actors and the supervisor."""
