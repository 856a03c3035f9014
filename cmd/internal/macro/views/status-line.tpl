# {host}: the line that people read first
\  %{res} %member-counts{} %diskstate{} %replstate{} %flags{} %role{} %primarynode{} %commstate{}
