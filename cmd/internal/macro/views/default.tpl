# {host}: status block of a resource
%default-resource{}
