"""The replay memory: a chunk log (in memory or Redis), its mirror, samplers and the limiter."""
