"""One module per page; each has a function `page()`. (Streamlit would serve a directory `pages` by itself.)"""
