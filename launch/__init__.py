"""`specialize launch`: an experiment where the accelerators are, on engines that exist. The experiment is the same."""
