# {host}: one line a resource
\  %{res} %diskstate-1and1{} %replstate-1and1{} %flags-1and1{} %role-1and1{} %primarynode-1and1{}\n\
%syncinfo-1and1{}\
%replinfo-1and1{}\
%resource-errors-1and1{}
