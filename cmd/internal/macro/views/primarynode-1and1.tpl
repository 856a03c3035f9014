# {}: = primarynode
%primarynode{}
