"""The page of a finished run, report.html: one file that needs no network.

page.py puts it together from the run's folder; report.html.jinja, report.css and report.js are its form, after hfgen's
look.css; words.py has the words around the pictures. curves.py draws metrics.jsonl, pictures_in_page.py embeds
pictures, drawings.py draws what can be moved, surprise.py reads a text with a GPT.
"""
