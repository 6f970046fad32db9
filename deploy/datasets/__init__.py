"""Episodes written as Minari datasets: played by a run's policy, or those that its replay memory holds."""
