"""How people keep clips: folders, lists, public data sets, tars."""
