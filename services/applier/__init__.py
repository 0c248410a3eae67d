"""Versions in; a running nginx with their policies and rows, and reports of it, out. One beside each nginx; holds no cluster credential."""
