"""`specialize launch`: an experiment where the accelerators are, on engines that exist. The experiment stays as it is."""
