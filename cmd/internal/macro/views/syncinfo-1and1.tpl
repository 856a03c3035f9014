# {host}: progress of the full sync, compact layout
%syncinfo{}
