"""The checks of ``qherd doctor``, each with what was found and what to do."""
