"""The book's settings. `make site` builds it; book.py holds what Sphinx does not do by itself."""

from pathlib import Path

from book import REPOSITORY

HERE = Path(__file__).parent

project = "pdlib"
language = "en"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "book"]

# Notebooks are shown as they are stored.
nb_execution_mode = "off"
nb_render_markdown_format = "myst"
nb_code_prompt_show = "Show the code"
nb_code_prompt_hide = "Hide the code"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
smartquotes_action = "D"  # dashes alone
suppress_warnings = ["myst.header", "toc.not_included"]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "pdlib"
html_static_path = [str(HERE / "_static")]
html_css_files = ["book.css"]
html_js_files = [("book.js", {"defer": "defer"})]
html_favicon = str(HERE / "_static" / "icon.svg")
html_theme_options = {"top_of_page_buttons": ["view"]}  # our own: components/view-this-page.html
html_context = {"repository": REPOSITORY}
html_math_renderer = "mathml"
html_sourcelink_suffix = ""
html_use_index = False
html_domain_indices = False
html_show_copyright = False
templates_path = [str(HERE / "_templates")]
pygments_style = "a11y-light"
pygments_dark_style = "a11y-dark"
