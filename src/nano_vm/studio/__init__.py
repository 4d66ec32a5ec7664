"""The studio: runs, approvals, programs and evidence in a browser on this machine. Needs the extra `[studio]`.

`library`, `meter` and `projections` read and know no Streamlit; `desk` acts; `screens` show. Whatever is shown comes
from the store as it is stored, unopened: the studio holds no key to read with, and so cannot show what is private.
"""
