"""What is here, and what starts a training: installation.py (packages, and the folder of the training scripts),
recipe_files.py (recipes, and what they reached), launch.py (`hfgen train`: a script under accelerate's launcher),
diagnosis.py (`hfgen doctor`), trial.py (a few seconds of a recipe)."""
