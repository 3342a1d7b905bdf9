"""Behind the commands that read or draw images: load_model.py (a model that can do it), output.py (pictures and
folders), scores.py (`hfgen score`), latents_table.py (`hfgen embed`), quality.py
(`hfgen evaluate`)."""
